"""Reports: one self-contained HTML page, Markdown or JSON from a run or a whole tuning."""
