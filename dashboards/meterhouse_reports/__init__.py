"""Reports for finance: figures from the views `finance_*` of the warehouse, which equal the ledger."""
