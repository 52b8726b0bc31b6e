"""How good a score is, from arrays alone: ranking and false alarms, each with an interval."""
