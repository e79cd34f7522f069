"""Hyper-parameter search on Optuna (`hfgen tune`)."""

from hfgen.utils.errors import UserError

try:
    import optuna  # noqa: F401
except ModuleNotFoundError as error:
    raise UserError("hfgen tune needs the package optuna: pip install 'hfgen[tune]'") from error
