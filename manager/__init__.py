"""The office: knows every request, owns every process."""
