"""Trials of a policy on the arm: episodes, judgements, interventions, results."""
