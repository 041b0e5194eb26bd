"""The report of a study, from the files of its folder. Imports no torch; see `build.build`."""
