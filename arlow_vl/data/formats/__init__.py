"""Readers of outside data: tars, folders, annotation files, records and tables, each given as `Sample`s.

`detect.open_source` finds out which reader a path is for. A reader yields samples one by one and counts in a `Tally`
what it leaves out. Images stay where they lie, unless they are inside the records.
"""
