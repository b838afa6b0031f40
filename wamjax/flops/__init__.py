"""FLOP accounting: closed forms, model totals, the jaxpr referee, the hardware table, utilisation and the ledger."""
