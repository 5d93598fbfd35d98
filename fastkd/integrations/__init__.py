"""fastkd's losses in the place of other libraries' own, with their definitions: one module for each library.

No module imports its library; each is given that library's object, or stands in the place of one.
"""
