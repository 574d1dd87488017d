"""Scenes: images composed of drawings at known places, with captions and questions whose truth is exact.

`write.write_scenes` fills a folder; docs/scenes.md has the grammar, the splits and a sample.
"""
