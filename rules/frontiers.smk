# Frontiers: the figures and the report.
#
# Inputs:  the accounting tables
# Outputs: results/report.html (opens offline), results/figures/; the README.md of every student's model
# Paid by: nobody's bill; stated apart

FIGURES = ["frontier", "stages", "amortization", "sweeps"]


rule frontiers:
    input:
        tables=rules.account.output.tables,
        machine=ancient("<results>/prerun/machine.json"),
    output:
        report=report(
            "<results>/report.html",
            caption="../workflow/report/report.rst",
            category="Report",
            labels={"what": "report", "format": "html"},
        ),
        findings="<results>/findings.txt",
        figures=[
            report(
                f"<results>/figures/{figure}.{kind}",
                caption=f"../workflow/report/{figure}.rst",
                category="Figures",
                labels={"what": figure, "format": kind},
            )
            for figure in FIGURES
            for kind in ("svg", "png", "pdf")
        ],
        energy="<results>/report.energy.json",
    log:
        "<logs>/frontiers.log",
    conda:
        "../environment.yml"
    threads: CONFIG.resources_of("frontiers").threads
    resources:
        **asks("frontiers"),
    message:
        "draw the frontiers and write the report"
    script:
        "../workflow/scripts/frontiers.py"
