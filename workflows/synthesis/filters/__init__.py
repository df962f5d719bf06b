"""What a written row has to pass before it is kept, one short file each. Rows that fail are kept apart, with why."""
