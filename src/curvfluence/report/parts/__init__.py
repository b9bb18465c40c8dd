"""What every page is made of: figures, tables, verdict, cautions, settings, and the shell."""
