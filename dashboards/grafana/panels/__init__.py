"""The dashboards that build.py writes, a module each."""

from panels import billing, budgets, costs, pipeline, usage

DASHBOARDS = {"pipeline": pipeline, "usage": usage, "costs": costs, "billing": billing, "budgets": budgets}
