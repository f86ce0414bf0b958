"""Run by every Python process whose PYTHONPATH has this folder: the run's commands, workers and ranks."""

import line_marks

line_marks.start()
