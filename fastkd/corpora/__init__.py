"""Rows in and rows out: files, tasks, samples, decoded answers, stores on disk. It knows no trainer."""
