"""`vmtokenctl doctor`: what a person gets wrong in dom0, and what to do about it."""

from dom0_broker.ctl.doctor.command import register

__all__ = ["register"]
