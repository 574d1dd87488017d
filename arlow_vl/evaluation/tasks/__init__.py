"""Evaluation tasks as data: a YAML says what is asked, scored and controlled (`task.Task`); those here are shipped.

items        samples of a source become items: images, a prompt, references
answering    the model and its controls answer the items; each batch of answers is saved at once
predictions  the files of a result folder
measures     the metrics of a task, computed from predictions
scoring      scores of the model beside those of its controls, with intervals
evaluate     all of it, as `arlow evaluate` runs it; `reproduce` computes the scores again
"""
