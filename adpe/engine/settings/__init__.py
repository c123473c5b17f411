"""Settings that the launcher works out before anything is built: batch, precision, schedule, initial weights."""
