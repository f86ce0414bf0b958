"""The daily DAG and the backfill; they call the genrank command."""
