"""Reports on what runs and experiments leave on disk.

`collect` reads it and `variants` groups students; `tables` and `figures` describe what is shown, as plain data
(`charts`); `plot` draws figures; `build` and `page` write the pages. Nothing is imported here, so that the command line
can show tables without torch and Matplotlib.
"""
