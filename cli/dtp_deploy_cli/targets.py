"""``dtp-deploy targets``: what a model can be measured on here."""

from dtp_deploy_cli.options import AsJson


def targets(as_json: AsJson = False) -> None:
    """List what models can run on.

    For a target that is not available here, the list says why, and what to install.
    """
    from dtp_deploy.report.text import json_text
    from dtp_deploy.target import target_classes
    from dtp_deploy_cli.console import print_json, print_table

    entries = []
    for name, target_class in target_classes().items():
        state = target_class().availability()
        entries.append(
            {
                "name": name,
                "summary": target_class.summary,
                "available": state.available,
                "builds": state.available or state.builds,
                "reason": state.reason,
                "install": state.install,
            }
        )
    if as_json:
        print_json(json_text(entries))
        return
    print_table(
        ("target", "what it is", "available", "why not", "what to do"),
        [
            (
                str(e["name"]),
                str(e["summary"]),
                "yes" if e["available"] else "builds only" if e["builds"] else "no",
                str(e["reason"]),
                str(e["install"]),
            )
            for e in entries
        ],
    )
