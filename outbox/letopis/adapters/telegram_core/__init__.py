"""Record Telegram chats in a history, independently of the Telegram library; shared by the library adapters."""
