"""The declarative feature schema: one declaration that the whole house reads. Pure Python, pydantic and pyarrow."""
