"""A run as a page: run folders, scores and samples in; report.html and its pictures out.

`run` reads a run folder's files, `data` what they tell of the data; `pictures` and `data_pictures` draw, `data_table` has the tables,
`page` writes the HTML. Reads file formats only: no model, no torch.
"""

from open_lm.report.data import DataView, read_data
from open_lm.report.page import Report, output_problems, write_report
from open_lm.report.run import RunLog, Scores, read_run, read_scores

__all__ = ["DataView", "Report", "RunLog", "Scores", "output_problems", "read_data", "read_run", "read_scores", "write_report"]
