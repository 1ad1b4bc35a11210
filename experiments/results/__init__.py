"""The questions that `docs/results` answers: what is asked, what was measured, the pages made of it."""
