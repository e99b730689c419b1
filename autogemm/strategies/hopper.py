"""Which devices and versions the kernels for Hopper are for, which are written in Gluon."""

from __future__ import annotations

from autogemm.device import Device, is_release, software_versions

_VERSIONS = ("3.6", "3.7", "3.8")
"""Gluon is an experimental part of Triton: what is written in it runs in versions it was run in."""


def reasons_without_gluon(device: Device, form: str) -> list[str]:
    """Why a form that is written in Gluon cannot be had."""
    if device.capability != (9, 0):
        return [f"form {form!r} is written for compute capability 9.0"]
    version = software_versions(device.type).get("triton", "none")
    if not is_release(version, _VERSIONS):
        written = f"{', '.join(_VERSIONS[:-1])} or {_VERSIONS[-1]}"
        return [f"form {form!r} is written in Gluon of Triton {written}; here is {version}"]
    return []
