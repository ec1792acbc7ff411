"""Lottery tickets in pre-trained BERT: read them as notebooks, run them in batches, import them.

`import lottery_nb as lt` is light: a name of the face below is imported when it is first used.
"""
__version__ = "0.1.0"

from importlib import import_module

_FACE = {   # module → names that a user wants at hand
    "files": "BadInput",
    "spec": "RunSpec TicketSpec StructuredSpec MagnitudeSpec AttentionSpec make_spec",
    "grid": "read_grid expand",
    "weights": "prunable census fingerprint",
    "masks": "Mask hold",
    "scores": "SCORES magnitude random first_order",
    "select": "topk_mask",
    "tickets": "Ticket",
    "models": "load_model load_tokenizer",
    "baseline": "theta0 dense",
    "tamt": "train_mask MaskSettings paper_settings mask_losses",
    "gates": "Gates gate importance smaller save_smaller load_smaller",
    "methods": "METHODS Method one_shot add_method find_ticket retrain",
    "running": "run",
    "shrinking": "Wish shrink",
    "store": "results",
}
_HOME = {name: module for module, names in _FACE.items() for name in names.split()}
__all__ = sorted(_HOME)   # noqa: PLE0605   (a list)


def __getattr__(name: str):
    "Import a name of the face on first use"
    if name not in _HOME: raise AttributeError(f"module 'lottery_nb' has no attribute {name!r}")
    try: globals()[name] = value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        from .extras import absent
        raise ImportError(absent(error.name or "") or error) from error
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
