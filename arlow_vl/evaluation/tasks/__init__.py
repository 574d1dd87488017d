"""Tasks as data: a YAML says what is asked, scored and controlled (`task.Task`); the .yaml files here are shipped.

items        samples of a source become items: images, a prompt, references
ask          the model and its controls answer the items, and each answer is kept at once
predictions  the files of a result folder
measures     predictions become numbers
scoring      numbers of the model stand beside those of its controls, with intervals
evaluate     all of it, as `arlow evaluate` runs it; `reproduce` derives the figures again
"""
