"""Accounting: who pays for which joule, what teacher work is worth, what is on the frontier.

Energies are joules, uncertainties 95 % bounds. Every joule of an attempt is on exactly one bill: a
run's, a shared artifact's, or the list of what is stated apart; shares of an artifact and what is
unallocated sum to its bill.
"""
