"""Files to documents: inputs, decompression, lines, tables, and the place of everything that is wrong."""
