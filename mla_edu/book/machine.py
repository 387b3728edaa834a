"""What a notebook says of the machine that it runs on."""

from importlib import metadata, util


def environment() -> str:
    """The device, and the versions of torch and triton, in one line."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    triton = metadata.version("triton") if util.find_spec("triton") else "not installed"
    return f"{device} | torch {torch.__version__} | triton {triton}"
