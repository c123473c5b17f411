"""How sure a difference is: over seeds, and over images where there is one seed."""
