"""The report: reads a run folder and nothing else, and never imports torch. `build.build(folder)` is the way in."""
