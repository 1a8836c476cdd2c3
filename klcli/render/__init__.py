"""How a report is shown. Every renderer takes a finished report and only formats what is in it."""
