"""Reports on what runs and experiments leave on disk.

`collect` reads runs and experiments, and `variants` groups students. `tables` and `figures` describe the content as
plain data (`charts`). `plot` draws figures. `build` and `page` write the pages. Nothing is imported here, so that the
command line can show tables without torch and Matplotlib.
"""
