"""Regrasp's environments and mapping in RLinf: the module that its variable RLINF_EXT_MODULE names."""

from regrasp.integrations.rlinf.extension import register

__all__ = ["register"]
