"""What a rung would cost before any of it is done: operations, bytes and seconds by stage."""

from curvfluence.forecast.make import LADDER, plan, plans
from curvfluence.forecast.plan import Plan

__all__ = ["LADDER", "Plan", "plan", "plans"]
