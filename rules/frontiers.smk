# Frontiers: the figures and the report.
#
# Inputs:  the accounting tables
# Outputs: results/report.html (opens offline), results/figures/
# Paid by: nobody's bill; stated apart

FIGURES = ["frontier", "stages", "amortisation"]


rule frontiers:
    input:
        tables=rules.account.output.tables,
        machine=ancient(MACHINE),
    output:
        report=f"{RESULTS}/report.html",
        findings=f"{RESULTS}/findings.txt",
        figures=expand(
            RESULTS + "/figures/{figure}.{kind}", figure=FIGURES, kind=["svg", "png"]
        ),
        energy=f"{RESULTS}/report.energy.json",
    log:
        "logs/frontiers.log",
    message:
        "draw the frontiers and write the report"
    script:
        "../workflow/scripts/frontiers.py"
