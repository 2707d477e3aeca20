"""A chat endpoint of OpenAI's form in front of the engines, which records the tokens of a user's agent."""
