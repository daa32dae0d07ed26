"""The decisions of the chat_templates package."""
