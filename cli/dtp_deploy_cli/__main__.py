"""``python -m dtp_deploy_cli`` is ``dtp-deploy``."""

from dtp_deploy_cli.main import main

main()
