"""The counter: what people and programs run; knows only the client."""
