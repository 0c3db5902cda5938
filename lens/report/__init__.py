"""A report of any model: what its own weights and one corpus tell of it, in one page. Sections are independent of each other."""

from lens.report.write import write_report as write_report
