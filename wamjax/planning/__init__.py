"""What a run will need, before it has chips: the compiled step's memory, collectives and time."""
