"""The report: figures for papers and one HTML file that opens anywhere, drawn from the tables."""
