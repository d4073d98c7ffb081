"""From a trace to answers: figures, verdicts in words, ranked pairs, a terminal summary, a one-file report.

Nothing here computes gradients or imports torch: a report is a function of the recorded tables alone.
"""
