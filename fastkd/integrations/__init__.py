"""fastkd's losses in the place of other libraries' own, with their definitions: one module for each library.

Importing a module does not import its library: each is given that library's object, or stands in its place.
"""
