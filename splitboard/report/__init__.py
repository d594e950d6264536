"""What was measured, as JSON, as a table for the terminal and as one self-contained HTML page.

Everything here is computed from run records (and, where given, the bundle's manifest); nothing is measured.
"""
