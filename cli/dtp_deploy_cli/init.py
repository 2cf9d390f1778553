"""``dtp-deploy init``: an example of ``dtp-deploy.toml``."""

from dtp_deploy.config import CONFIG_FILE, example_config
from dtp_deploy.errors import UsageError


def init() -> None:
    """Write a commented dtp-deploy.toml here.

    It holds every key that `dtp-deploy compress` reads; none of them counts until its # is taken away.
    """
    from dtp_deploy_cli.console import print_line

    try:
        with CONFIG_FILE.open("x", encoding="utf-8") as file:
            file.write(example_config())
    except FileExistsError:
        raise UsageError(f"{CONFIG_FILE} exists already and is not replaced. Edit it, or move it away.") from None
    except OSError as error:
        raise UsageError(
            f"{CONFIG_FILE} cannot be written here ({error.strerror}). Work in a folder that you may write."
        ) from error
    print_line(f"{CONFIG_FILE} is written. Take the # away before what you want to set.")
