"""Tools beside the preprocessor: tokenizer training, statistics, validation, downloads, small corpora and tasks."""
