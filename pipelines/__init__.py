"""The sample builder: exposure logs in, point-in-time samples out, on Spark or in process."""
